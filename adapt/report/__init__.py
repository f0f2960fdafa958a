"""Tables, statistics, pages and plots of finished runs."""
