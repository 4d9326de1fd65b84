"""Objects in images, as files describe them: read and checked for detection, drawn as masks for segmentation."""
