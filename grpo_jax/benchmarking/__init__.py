"""What a GRPO step costs: the work it needs, the machine's rates, our times and the peers'."""
