"""Word tables of the synthetic corpus: plain Python data, no behaviour."""
