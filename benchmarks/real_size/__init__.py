"""Time and memory of each job on models of real size, loaded from files that this benchmark writes."""
