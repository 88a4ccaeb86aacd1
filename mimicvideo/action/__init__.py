"""Stage 2: a policy that reads the video model's hidden states."""
