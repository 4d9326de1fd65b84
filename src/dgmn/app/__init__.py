"""The web page of `dgmn app`: predictions, and the nodes behind them, on this machine."""
