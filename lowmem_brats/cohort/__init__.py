"""Many cases into one folder, by one process or many: whose case is whose, a record of each, tables of all."""
