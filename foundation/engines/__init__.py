"""PostgreSQL, the truth, and NATS JetStream, the distribution: ours to start and keep, or somebody else's."""
