"""What the detection models cost: implementations side by side, in time, memory and operations."""
