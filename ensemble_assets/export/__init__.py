"""Write, read and judge the bundles that vector databases and older programs load."""
