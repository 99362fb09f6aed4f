"""Commands about crons, generators and blueprints."""
