"""Mistakes in arguments of the command line."""

import shlex
from collections.abc import Callable

from bad_inputs.cases import Case, World
from bad_inputs.images import encoded, pipe, predict

DIGITS = "recipes/classification/digits.yaml"
FINETUNE = "recipes/detection/finetune_coco_format.yaml"
WHOLE = "must be a whole number of at least 1 and below 1,000,000"
SHARE = "must be a number from 0 to 1"
POINT = "must be two numbers separated by a comma"
CHOICE = "invalid choice"

# Arguments without any file, and what is told.
PLAIN: dict[str, tuple[str, str]] = {
    "no-such-command": ("predct x.png", "no command 'predct', did you mean predict"),
    "empty-command": ("''", "no command ''"),
    "command-newline": ("'pre\ndict'", r"no command 'pre\\ndict'"),
    "command-in-capitals": ("FIT", "no command 'FIT'"),
    "option-first": ("--data.root x", "no command '--data.root'"),
    "fit-without-recipe": ("fit --data.root x", "give a recipe"),
    "fit-recipe-without-value": ("fit -c", "-c|--config"),
    "fit-no-such-recipe": ("fit -c digts.yaml", "no such recipe, did you mean recipes/classification/digits.yaml"),
    "fit-recipe-a-folder": ("fit -c .", r"-c \.: no such recipe"),
    "fit-recipe-empty-name": ("fit -c ''", "-c"),
    "fit-recipe-long-name": (f"fit -c {'x' * 5000}", "no such recipe|File name too long"),
    "complexity-near": ("complexity dgmn2_nan", "did you mean dgmn2_nano"),
    "fit-no-such-option": (f"fit -c {DIGITS} --data.rot x", "--data.rot: no such option, did you mean --data.root"),
    "fit-no-such-section": (f"fit -c {DIGITS} --dta.root x", "--dta.root: no such option"),
    "fit-no-such-folder": (f"fit -c {DIGITS} --data.root nowhere", "data.root nowhere: there is no such folder"),
    "fit-word": (f"fit -c {DIGITS} data --data.root .", "data"),
    "validate-without-weights": (f"validate -c {DIGITS} --data.root .", "needs weights|--ckpt_path"),
    "validate-no-checkpoint": (f"validate -c {DIGITS} --ckpt_path best", "--ckpt_path best: there is no"),
    "test-no-checkpoint": (f"test -c {DIGITS} --ckpt_path x.ckpt", r"--ckpt_path x\.ckpt: no such file"),
    "validate-data-without-recipe": ("validate-data", "give a recipe"),
    "validate-data-of-a-model": (f"validate-data -c {DIGITS} --model.num_classes 3", "takes only --data options"),
    "validate-data-no-root": (f"validate-data -c {DIGITS} --data.root x", "data.root x: there is no such folder"),
    "validate-data-recipe-value": ("validate-data -c", "expected one argument"),
    "predict-nothing": ("predict", "IMAGE"),
    "predict-empty": ("predict '' --model dgmn2_tiny", "after 'predict': an empty value; is a variable of the shell"),
    "fit-root-empty": (f"fit -c {DIGITS} --data.root ''", "--data.root: an empty value"),
    "fit-root-empty-too": (f"fit -c {DIGITS} --data.root=", "--data.root: an empty value"),
    "reproduce-no-folder": ("reproduce retinanet_dgmn2_small --data nowhere", "nowhere: there is no such folder"),
    "predict-no-image": ("predict y.png --model dgmn2_tiny", r"y\.png: no such file"),
    "zoo-task": ("zoo --task poetry", CHOICE),
    "zoo-command": ("zoo upload", CHOICE),
    "zoo-no-such-model": ("zoo download dgmn2_tny", "did you mean dgmn2_tiny"),
    "zoo-no-such-file": ("zoo download dgmn2_tiny --file x.pth", r"--file x\.pth: no such file"),
    "zoo-file-a-folder": ("zoo download dgmn2_tiny --file .", r"--file \.: no such file"),
    "zoo-verify-no-such-model": ("zoo verify dgmn2_tny", "did you mean dgmn2_tiny"),
    "zoo-verify-of-a-path": ("zoo verify ../../etc/passwd", "no published model"),
    "zoo-name-of-a-path": ("zoo download ../../etc/passwd", "no published model"),
    "complexity-model": ("complexity dgmn2_tny", "dgmn2_tny"),
    "complexity-size": ("complexity dgmn2_nano --size 0", WHOLE),
    "complexity-size-negative": ("complexity dgmn2_nano --size -224", WHOLE),
    "complexity-size-text": ("complexity dgmn2_nano --size large", WHOLE),
    "complexity-size-half": ("complexity dgmn2_nano --size 224.5", WHOLE),
    "complexity-sizes": ("complexity dgmn2_nano --size 1 2 3", "takes one number or two"),
    "complexity-size-superscript": ("complexity dgmn2_nano --size ²", WHOLE),
    "complexity-size-huge": (f"complexity dgmn2_nano --size {10**30}", WHOLE),
    "complexity-size-5000-digits": (f"complexity dgmn2_nano --size {'9' * 5000}", WHOLE),
    "complexity-table": ("complexity --table 18", CHOICE),
    "complexity-table-text": ("complexity --table two", "invalid int value"),
    "complexity-table-model": ("complexity dgmn2_nano --table 2", "give no MODEL"),
    "complexity-insert-nowhere": ("complexity dgmn2_nano --insert stage.3", "did you mean stages.3"),
    "complexity-insert-alias": ("complexity dgmn2_nano --insert '{places: [*x]}'", "must be places or YAML"),
    "complexity-insert-empty": ("complexity dgmn2_nano --insert {}", "insert: got {}; accepted"),
    "complexity-insert-comma": (
        "complexity dgmn2_nano --insert ,",
        "--insert: must name something, separated by commas, got .,.",
    ),
    "complexity-insert-alone": ("complexity --insert stages.3", "--insert needs a MODEL"),
    "complexity-of-a-folder": ("complexity /etc", "/etc"),
    "complexity-of-a-hub": ("complexity hf-hub:nobody/nothing", "hf-hub:nobody/nothing"),
    "reproduce-row": ("reproduce tabl3_ccnet", "did you mean table3_ccnet"),
    "reproduce-row-empty": ("reproduce ''", "no row ''"),
    "reproduce-option": ("reproduce dgmn2_tiny --csw x.csv", r"--csw: only for an evaluation"),
    "reproduce-checkpoint-alone": ("reproduce dgmn2_tiny --ckpt_path x.pth", "only for an evaluation"),
    "reproduce-all": ("reproduce --data .", "give its whole name"),
    "reproduce-several": ("reproduce table7 --data .", "give its whole name, for instance one of table7_retinanet_res"),
    "reproduce-no-recipe": ("reproduce table6_pvt_tiny --data .", "timm has no network of this name"),
    "reproduce-server": ("reproduce table4_dgmn --data .", "only the test server has the labels"),
    "reproduce-no-weights": ("reproduce table3_ccnet --data .", "has no published weights: give --ckpt_path"),
    "reproduce-no-file": ("reproduce dgmn2_tiny --data . --ckpt_path x.pth", r"--ckpt_path x\.pth: no such file"),
    "reproduce-scales": ("reproduce dgmn2_tiny --data . --multi_scale", "has no score at several scales"),
    "reproduce-folder": ("reproduce dgmn2_tiny --data nowhere", r"data\.root nowhere: there is no such folder"),
    "reproduce-option-of-validate": (
        "reproduce dgmn2_tiny --data . --trainer.device 1",
        r"did you mean --trainer\.devices",
    ),
    "bench-what": ("bench everything", CHOICE),
    "bench-shape": ("bench ops --shapes 1x2x3", "must be BxHxWxHEADSxD"),
    "bench-shape-zero": ("bench ops --shapes 1x0x8x1x8", "must be BxHxWxHEADSxD"),
    "bench-shape-letters": ("bench ops --shapes axbxcxdxe", "must be BxHxWxHEADSxD"),
    "bench-contender": ("bench ops --contenders magic --shapes 1x8x8x1x8 --out out", "magic"),
    "bench-rounds": ("bench ops --rounds 0", WHOLE),
    "bench-threads": ("bench ops --threads many", WHOLE),
    "bench-dtype": ("bench ops --dtype int8", CHOICE),
    "bench-device": ("bench ops --device toaster", CHOICE),
    "bench-cuda": ("bench ops --device cuda --shapes 1x8x8x1x8 --out out", "cuda|CUDA"),
    "bench-model": ("bench models --models dgmn2_tny --out out", "dgmn2_tny"),
    "bench-model-kind": ("bench models --models dgmn2_nano:fast --out out", "fast"),
    "bench-size": ("bench models --sizes 224x", "must be 224 or 512x1024"),
    "bench-size-negative": ("bench models --sizes=-224", "must be 224 or 512x1024"),
    "bench-mode": ("bench models --mode sleep", CHOICE),
    "quickstart-task": ("quickstart --task poetry", CHOICE),
    "quickstart-model": ("quickstart --model mask_rcnn", "--model is for --task detection"),
    "quickstart-output": ("quickstart --output", "expected one argument"),
}

# Options of `dgmn predict x.png` with a trained classifier, detector or segmenter.
PREDICT: dict[str, tuple[str, str, str]] = {
    "top-zero": ("classifier", "--top 0", WHOLE),
    "top-negative": ("classifier", "--top -3", WHOLE),
    "top-half": ("classifier", "--top 1.5", WHOLE),
    "top-nan": ("classifier", "--top nan", WHOLE),
    "top-without-value": ("classifier", "--top", "expected one argument"),
    "top-superscript": ("classifier", "--top ²", WHOLE),
    "top-5000-digits": ("classifier", f"--top {'9' * 5000}", "--top"),
    "top-of-a-detector": ("retinanet", "--top 3", "--top is for classification"),
    "score-above-1": ("retinanet", "--score 1.5", SHARE),
    "score-negative": ("retinanet", "--score -0.5", SHARE),
    "score-nan": ("retinanet", "--score nan", SHARE),
    "score-inf": ("retinanet", "--score inf", SHARE),
    "score-text": ("retinanet", "--score high", SHARE),
    "score-comma": ("retinanet", "--score 0,5", SHARE),
    "score-empty": ("retinanet", "--score ''", SHARE),
    "score-of-a-classifier": ("classifier", "--score 0", "--score is for detection"),
    "labels-of-a-classifier": ("classifier", "--labels out", "--labels is for segmentation and detection"),
    "labels-already-there": ("retinanet", "--labels folder", r"folder/x\.txt is there already, give a new folder"),
    "scales-of-a-detector": ("retinanet", "--multi_scale", "--multi_scale is for segmentation"),
    "scales-with-value": ("semantic_fpn", "--multi_scale=yes", "ignored explicit argument"),
    "submission-of-other-classes": ("semantic_fpn", "--submission out", "19 classes of Cityscapes"),
    "batch-zero": ("classifier", "--batch_size 0", WHOLE),
    "batch-negative": ("retinanet", "--batch_size -1", WHOLE),
    "batch-text": ("semantic_fpn", "--batch_size all", WHOLE),
    "device-unknown": ("classifier", "--device toaster", "device toaster: not available here"),
    "device-number": ("classifier", "--device cuda:99", "device cuda:99: not available here"),
    "device-empty": ("classifier", "--device ''", "device"),
    "device-meta": ("classifier", "--device meta", "device meta"),
    "at-without-nodes": ("classifier", "--at 1,1", "--at is for --nodes FOLDER"),
    "layer-without-nodes": ("classifier", "--layer stages.0", "--layer is for --nodes FOLDER"),
    "at-one-number": ("classifier", "--nodes out --at 1", POINT),
    "at-three-numbers": ("classifier", "--nodes out --at 1,2,3", POINT),
    "at-text": ("classifier", "--nodes out --at left,top", POINT),
    "at-nan": ("classifier", "--nodes out --at nan,1", "at must|--at"),
    "at-outside": ("classifier", "--nodes out --at 40,1", "at must lie in the image"),
    "at-negative": ("classifier", "--nodes out --at=-1,1", "at must lie in the image"),
    "at-inf": ("classifier", "--nodes out --at inf,1", "at must|--at"),
    "layer-unknown": ("classifier", "--nodes out --layer nowhere", "nowhere"),
    "layer-empty": ("classifier", "--nodes out --layer ''", "layer"),
    "no-such-option": ("classifier", "--pictrues out", "--pictrues: no such option, did you mean --pictures"),
    "model-unknown": ("classifier", "--model dgmn2_tny", "did you mean dgmn2_tiny"),
    "model-of-another-network": ("classifier", "--model dgmn2_tiny", r"last\.ckpt"),
    "model-of-another-task": ("classifier", "--model retinanet_dgmn2_tiny", r"last\.ckpt"),
    "recipe-missing": ("classifier", "-c nowhere.yaml", "-c nowhere.yaml: no such recipe"),
    "recipe-of-another-task": ("classifier", f"-c {FINETUNE}", r"last\.ckpt|data"),
    "json-a-folder": ("classifier", "--json folder", "this is a folder, give a file"),
    "json-below-a-file": ("classifier", "--json a_file/x.json", r"a_file/x\.json: a_file is a file, give a folder"),
    "json-full-disk": ("classifier", "--json /dev/full", "/dev/full: cannot be written: No space left"),
    "json-no-place": ("classifier", "--json /proc/x.json", r"/proc/x\.json: cannot be written"),
    "json-long-name": ("classifier", f"--json {'x' * 300}", "File name too long"),
    "json-empty": ("classifier", "--json ''", "--json"),
    "json-the-image": ("classifier", "--json x.png", r"--json x\.png"),
    "json-the-checkpoint": ("classifier", "--json copy.ckpt --ckpt_path copy.ckpt", r"--json copy\.ckpt"),
    "pictures-a-file": ("classifier", "--pictures a_file", "this is a file, give a folder"),
    "pictures-below-a-file": ("classifier", "--pictures a_file/out", "out: a_file is a file, give a folder"),
    "pictures-no-place": ("classifier", "--pictures /proc/out", "/proc/out"),
    "pictures-a-pipe": ("classifier", "--pictures pipe", "pipe"),
    "nodes-a-file": ("classifier", "--nodes a_file", "this is a file, give a folder"),
    "labels-a-file": ("semantic_fpn", "--labels a_file", "this is a file, give a folder"),
    "pictures-long-name": ("classifier", f"--pictures {'x' * 300}", "File name too long"),
    "root-missing": ("classifier", "--root nowhere", "--root nowhere: there is no such folder"),
    "root-a-file": ("classifier", "--root a_file", "--root a_file: there is no such folder"),
    "root-beside": ("classifier", "--root folder", r"--root folder: x\.png is not in this folder"),
    "root-empty": ("classifier", "--root ''", "--root"),
    "twice": ("classifier", "--top 1 --top 0", WHOLE),
}

# Options of `dgmn fit` on a good dataset.
FIT: dict[str, tuple[str, str]] = {
    "classes-zero": ("--model.num_classes 0", "num_classes"),
    "classes-negative": ("--model.num_classes -1", "num_classes"),
    "classes-text": ("--model.num_classes ten", "num_classes"),
    "classes-half": ("--model.num_classes 2.5", "num_classes"),
    "classes-null": ("--model.num_classes null", "num_classes"),
    "classes-huge": (f"--model.num_classes {10**30}", "num_classes|dgmn2_nano cannot be built"),
    "classes-other": ("--model.num_classes 7", "num_classes"),
    "classes-nan": ("--model.num_classes nan", "num_classes"),
    "classes-list": ("--model.num_classes [2]", "num_classes"),
    "classes-without-value": ("--model.num_classes", "--model: expected one argument|num_classes"),
    "model-unknown": ("--model.model dgmn2_nan", "dgmn2_nan"),
    "model-empty": ("--model.model ''", "model"),
    "model-a-path": ("--model.model ../x", "model"),
    "model-a-hub": ("--model.model hf-hub:nobody/nothing", "hf-hub"),
    "model-a-class": ("--model os.system", "os.system|not a subclass"),
    "model-args-text": ("--model.model_args x", "model_args"),
    "model-args-unknown": ("--model.model_args {zzz: 1}", "zzz"),
    "model-args-broken": ("--model.model_args {zzz: ", "model_args"),
    "data-a-class": ("--data subprocess.Popen", "subprocess.Popen|not a subclass"),
    "data-a-tag": ("--data.image_size '!!python/object/apply:os.system [touch executed]'", "image_size"),
    "checkpoint-missing": ("--model.checkpoint x.pth", r"--model\.checkpoint x\.pth: no such file"),
    "checkpoint-a-folder": ("--model.checkpoint .", r"--model\.checkpoint"),
    "batch-zero": ("--data.batch_size 0", "data.batch_size must be at least 1, got 0"),
    "batch-negative": ("--data.batch_size -4", "batch_size must be at least 1, got -4"),
    "batch-text": ("--data.batch_size many", "batch_size"),
    "workers-negative": ("--data.num_workers -1", "data.num_workers must be at least 0, got -1"),
    "size-zero": ("--data.image_size 0", "image_size must be from 1 to 4096"),
    "size-text": ("--data.image_size large", "image_size"),
    "crop-nan": ("--data.crop_pct nan", "crop_pct"),
    "crop-above-1": ("--data.crop_pct 1.5", "crop_pct"),
    "repeats-zero": ("--data.augmentation.repeats 0", "repeats must be at least 1"),
    "flip-above-1": ("--data.augmentation.hflip 2", "hflip"),
    "flip-nan": ("--data.augmentation.hflip nan", "hflip"),
    "scale-reversed": ("--data.augmentation.scale [1.0,0.1]", "scale"),
    "scale-one-number": ("--data.augmentation.scale [1.0]", "scale"),
    "scale-negative": ("--data.augmentation.scale [-1,1]", "scale"),
    "ratio-zero": ("--data.augmentation.ratio [0,1]", "ratio"),
    "jitter-negative": ("--data.augmentation.color_jitter -1", "color_jitter"),
    "erasing-above-1": ("--data.augmentation.erasing 3", "erasing"),
    "policy-unknown": ("--data.augmentation.auto_augment magic", "auto_augment"),
    "policy-section": ("--data.augmentation.auto_augment rand-m9-magic3", "auto_augment"),
    "policy-number": ("--data.augmentation.auto_augment rand-m9.5", "auto_augment"),
    "interpolation-unknown": ("--data.augmentation.interpolation magic", "interpolation"),
    "epochs-text": ("--trainer.max_epochs many", "max_epochs"),
    "epochs-below": ("--trainer.max_epochs -2", "trainer.max_epochs must be at least -1"),
    "clip-negative": ("--trainer.gradient_clip_val -1", "gradient_clip_val must be at least 0"),
    "clip-nan": ("--trainer.gradient_clip_val nan", "gradient_clip_val"),
    "accumulate-zero": ("--trainer.accumulate_grad_batches 0", "accumulate_grad_batches must be at least 1"),
    "accelerator-unknown": ("--trainer.accelerator toaster", "toaster"),
    "devices-negative": ("--trainer.devices -3", "devices"),
    "devices-text": ("--trainer.devices all", "devices"),
    "precision-unknown": ("--trainer.precision 7", "precision"),
    "batches-negative": ("--trainer.limit_train_batches -1", "limit_train_batches"),
    "workers-null": ("--data.num_workers null", "num_workers"),
    "batch-null": ("--data.batch_size null", "batch_size"),
    "size-null": ("--data.image_size null", "image_size"),
    "mixup-null": ("--model.mixup null", "mixup"),
    "rate-null": ("--model.optimizer.init_args.lr null", "lr"),
    "flip-null": ("--data.augmentation.hflip null", "hflip"),
    "scale-null": ("--data.augmentation.scale null", "scale"),
    "seed-negative": ("--seed_everything -1", r"seed_everything must be in 0\.\."),
    "seed-huge": (f"--seed_everything {2**64}", r"seed_everything must be in 0\.\."),
    "seed-text": ("--seed_everything x", "seed_everything"),
    "rate-nan": ("--model.optimizer.init_args.lr nan", "lr|learning rate"),
    "rate-negative": ("--model.optimizer.init_args.lr -1", "lr|learning rate"),
    "rate-text": ("--model.optimizer.init_args.lr fast", "lr"),
    "rate-1e400": ("--model.optimizer.init_args.lr 1e400", "lr|learning rate"),
    "decay-negative": ("--model.optimizer.init_args.weight_decay -1", "weight_decay"),
    "optimizer-unknown": ("--model.optimizer torch.optim.Adamw", "optimizer|Adamw"),
    "optimizer-a-function": ("--model.optimizer os.system", "os.system|optimizer"),
    "optimizer-another-class": ("--model.optimizer torch.nn.Linear", "Linear"),
    "schedule-a-function": ("--model.schedule os.system", "os.system|schedule"),
    "warmup-negative": ("--model.schedule.init_args.warmup -1", "warmup"),
    "warmup-nan": ("--model.schedule.init_args.warmup nan", "warmup"),
    "smoothing-above-1": ("--model.label_smoothing 2", "smoothing"),
    "mixup-negative": ("--model.mixup -1", "mixup"),
    "cutmix-nan": ("--model.cutmix nan", "cutmix"),
    "lr-batch-zero": ("--model.lr_batch 0", "lr_batch"),
    "callback-a-function": ("--trainer.callbacks os.system", "os.system|callbacks"),
    "logger-a-function": ("--trainer.logger builtins.eval", "eval|logger"),
    "root-a-file": ("--data.root a_file", "data.root a_file: there is no such folder"),
    "root-empty-folder": ("--data.root folder", "data.root folder: expected train/<class>"),
    "run-below-a-file": ("--trainer.default_root_dir a_file/run", "run: a_file is a file, give a folder"),
    "run-no-place": ("--trainer.default_root_dir /proc/run", "/proc/run"),
    "ckpt-missing": ("--ckpt_path x.ckpt", r"--ckpt_path x\.ckpt: no such file"),
    "ckpt-empty-file": ("--ckpt_path a_file", "a_file"),
    "recipe-twice-missing": ("-c nowhere.yaml", "-c nowhere.yaml: no such recipe"),
    "recipe-twice-empty-file": ("-c a_file", "-c a_file: a recipe has sections such as model and data, got nothing"),
}


def clutter(world: World) -> None:
    world.file("x.png", encoded("PNG"))
    world.file("a_file", "")
    (world.here / "folder").mkdir()
    pipe(world.here / "pipe")


def _plain(text: str) -> Callable[[World], list[str]]:
    def arguments(world: World) -> list[str]:
        clutter(world)
        return shlex.split(text)

    return arguments


def _predict(kind: str, options: str) -> Callable[[World], list[str]]:
    def arguments(world: World) -> list[str]:
        clutter(world)
        if "folder" in options:
            world.file("folder/x.txt", "")
        if "copy.ckpt" in options:
            world.file("copy.ckpt", world.checkpoint(kind).read_bytes())
        return [*predict(world, "x.png", kind=kind), *shlex.split(options)]

    return arguments


def _fit(options: str) -> Callable[[World], list[str]]:
    def arguments(world: World) -> list[str]:
        clutter(world)
        for place in ("train/a", "train/b", "val/a", "val/b"):
            world.file(f"data/{place}/1.png", encoded("PNG"))
            world.file(f"data/{place}/2.png", encoded("PNG"))
        given = ["fit", "-c", DIGITS, "--data.root", "data", "--model.num_classes", "2", "--trainer.max_epochs", "1"]
        given += ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", "run", "--data.batch_size", "2"]
        return [*given, *shlex.split(options)]

    return arguments


CASES = [
    *(Case(f"line-{name}", _plain(text), told) for name, (text, told) in PLAIN.items()),
    *(Case(f"predict-{name}", _predict(kind, text), told) for name, (kind, text, told) in PREDICT.items()),
    *(Case(f"fit-{name}", _fit(text), told) for name, (text, told) in FIT.items()),
]
