"""What a network costs: counted multiply-adds, measured latency and memory."""
