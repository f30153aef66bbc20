"""The only code that knows the Trainer."""
