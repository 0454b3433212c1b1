"""All the mapper's queries, by what they are about. Transactions begin and end in the unit of work alone."""
