"""Train the diffusers networks of the zoo."""
