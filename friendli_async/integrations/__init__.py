"""Where users already are: one module for each other library, with an extra of the same name. Nothing imports them."""
