"""What an engineer runs beside a line: check, doctor, camera test, GPU report."""
