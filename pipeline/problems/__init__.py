"""What is searched: for each space how its studies are set up, evaluated and reported; one a file."""
