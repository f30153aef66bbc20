"""What is known of models: targets, axes, removal."""
