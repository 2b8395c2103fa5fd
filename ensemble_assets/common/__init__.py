"""Hold the parts that every package needs: errors, events, schemas, atomic files, facts about the machine."""
