"""All queries about identities, by what they are about. Transactions begin and end in the unit of work alone."""
