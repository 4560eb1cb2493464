"""What stays continuous after codes are chosen: norms and scales, tuned against the fp32 model's distribution."""
