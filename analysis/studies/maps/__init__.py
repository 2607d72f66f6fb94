"""Which system wins where: maps over two factors."""
