"""What all domains build on: Redis, embeddings, caches, durability and admission."""
