"""Post-training quantisation of diffusers networks: TFMQ-DM and its baselines in one harness."""
