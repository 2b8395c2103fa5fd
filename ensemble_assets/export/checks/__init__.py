"""Judge a bundle by the export contract: gates that read its files and name the record and the key that is wrong."""
