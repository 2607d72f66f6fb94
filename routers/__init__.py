"""Who goes where: routers decide the experts of every token before a system sees them."""
