//! From declared objects to a topology: who is which server, who may call whom, and every problem found.
