"""Makes logs for the main job: from the paper's public sources, or from any log of one's own."""
