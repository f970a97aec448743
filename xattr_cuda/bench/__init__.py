"""What a training step with a prior costs: cases, contestants, and the measuring of time, memory and operations."""
