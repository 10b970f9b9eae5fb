"""Long comparisons: the league, the paper's experiments, the zoo, and the processes that run them."""
