"""The networks: the published UNet in its fast form, the compact one, their inputs, patches and weights."""
