"""The way to PostgreSQL, for every service that keeps something there.

`unit_of_work` is what services use; `bootstrap` and `migrate` prepare a database; `tenancy` is what migrations
are written with; `walls` proves that no table was forgotten. This module imports none of them, because
`tieline up` finds out that there is nothing to prepare without paying for SQLAlchemy and Alembic.
"""
