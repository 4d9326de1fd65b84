"""What the command answers with before torch is imported. Everything of dgmn may use it; it uses nothing of dgmn.

It stands beside the package, because importing anything of `dgmn` imports torch and timm first.
"""
