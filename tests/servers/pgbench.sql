\set aid random(1, 10000)
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
SELECT 4711 AS answer \gset
\if :answer < 4711 or :answer > 4713
SELECT 'the answer is wrong'::int;
\endif
