"""The methods of editing, a module each."""
