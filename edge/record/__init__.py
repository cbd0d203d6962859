"""What a line leaves behind: the journal, recorded sessions, and their replay."""
