def references_of(n): return [18]
