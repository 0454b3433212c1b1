"""GitHub's webhooks as events."""
