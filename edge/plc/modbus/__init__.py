"""PLC link `modbus`: the line is the master, the PLC a Modbus RTU slave."""
