"""What benches are made with."""
