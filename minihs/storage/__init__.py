"""PostgreSQL, and all of the SQL. Nothing here knows what a rule of Matrix is."""
