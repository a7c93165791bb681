-- A table to try Walbus with; PostgreSQL's container runs this once, on an empty volume.
CREATE TABLE products (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    price numeric(10, 2) NOT NULL
);
INSERT INTO products (name, price) VALUES ('lamp', 19.90), ('chair', 89.00), ('kettle', 24.50);
