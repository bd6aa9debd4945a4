"""Services that ride beside training, or run without it: offloaded samples, bundles."""
