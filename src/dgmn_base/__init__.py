"""What the command needs before torch is imported. All of `dgmn` may use this package; it uses nothing of `dgmn`.

It is outside `dgmn`, because importing anything from `dgmn` imports torch and timm first.
"""
