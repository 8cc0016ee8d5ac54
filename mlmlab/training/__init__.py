"""The loop and what it is made of: step, schedule, optimizer, evaluation, saved state."""
