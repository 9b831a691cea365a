"""Where training and serving happen. One protocol, declared capabilities, a lazy registry."""
