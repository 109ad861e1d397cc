"""What runs when and where: processes of one machine, jobs of a cluster, and what each needs."""
