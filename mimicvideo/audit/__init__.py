"""The audit of datasets: what they hold under a training configuration, and what is wrong with which episode."""
