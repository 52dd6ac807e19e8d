"""The page that people look at. Plain files: nothing is built, nothing is fetched from elsewhere."""
