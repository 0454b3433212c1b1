"""Between the contract's messages and plain values. Nothing else in the SDK knows the messages."""
