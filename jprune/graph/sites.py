def find_sites(c,g): return ()
